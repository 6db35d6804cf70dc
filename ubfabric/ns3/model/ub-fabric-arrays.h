// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_FABRIC_ARRAYS_H
#define UB_FABRIC_ARRAYS_H

#include <cstdint>

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief A fabric as flat arrays: what a graph becomes before it enters ns-3.
 *
 * The arrays belong to the caller and are read once, in UbFabric::Build. Nodes, links and
 * planes are numbered from zero. Every link has one direction; a cable is two links. A route
 * never depends on more than (node, destination): the tables say all shortest next links, and
 * the path policy picks one of them.
 *
 * Destination classes keep the tables small: within a plane, the endpoints attached to the
 * same switches form a class, and a switch's row has one entry a class. An entry is a group
 * number, -1 where there is no way, or -(b + 2) at the switches that the class is attached to:
 * there the group is `local[b + slot]`, with the destination's slot in its class.
 *
 * The latencies of reading memory and of acknowledging may be left out and are the receive
 * latency then; SDMA arrays may be left out where no flow is sent by SDMA.
 */
struct UbFabricArrays
{
    uint32_t nNodes{0};                              //!< number of nodes
    const uint8_t* nodeIsEndpoint{nullptr};          //!< 1 for endpoints, 0 for switches
    const int64_t* nodeForwardLatencyPs{nullptr};    //!< switch: head in to head out
    const int64_t* nodeBufferBytes{nullptr};         //!< input buffer a port and virtual lane
    const uint32_t* nodeIssueEngines{nullptr};       //!< endpoint: engines issuing messages
    const int64_t* nodeIssueCostPs{nullptr};         //!< endpoint: cost of each message
    const uint64_t* nodeEngineBytesPerS{nullptr};    //!< endpoint: rate of one engine, 0: no limit
    const uint64_t* nodeEgressBytesPerS{nullptr};    //!< endpoint: rate into all ports, 0: no limit
    const int64_t* nodeReceiveLatencyPs{nullptr};    //!< endpoint: last byte in to seen by the rank
    const uint64_t* nodeCopyBytesPerS{nullptr};      //!< endpoint: rate to itself, 0: no limit
    const int64_t* nodeMemoryReadLatencyPs{nullptr}; //!< endpoint: read request in to data out
    const int64_t* nodeAcknowledgeLatencyPs{nullptr}; //!< endpoint: packet in to response out
    const uint8_t* nodeOverlapsIssue{nullptr};        //!< endpoint: an engine prepares its next
                                                      //!< message while it streams one
    const uint32_t* nodeSdmaEngines{nullptr};         //!< endpoint: SDMA engines
    const int64_t* nodeSdmaStartPs{nullptr};          //!< endpoint: start-up cost of a transfer
    const uint64_t* nodeSdmaBytesPerS{nullptr};       //!< endpoint: rate of one SDMA engine
    const uint64_t* nodeSdmaReadBytesPerS{nullptr};   //!< endpoint: rate at which one SDMA engine
                                                      //!< of another reads it, 0: no limit
    const uint64_t* nodeSdmaWriteBytesPerS{nullptr};  //!< endpoint: the same of writes

    const uint32_t* nodeMemoryWritePpm{nullptr}; //!< endpoint: rate of writes over UB, in
                                                 //!< millionths of the link's; nullptr: no limit

    uint32_t nLinks{0};                      //!< number of links; 2c and 2c + 1 are one cable
    const uint32_t* linkSrc{nullptr};        //!< node a link leaves
    const uint32_t* linkDst{nullptr};        //!< node a link enters
    const uint32_t* linkPlane{nullptr};      //!< plane of a link
    const uint64_t* linkBytesPerS{nullptr};  //!< rate of a link
    const int64_t* linkDelayPs{nullptr};     //!< propagation delay of a link
    const double* linkBitErrorRate{nullptr}; //!< after error correction; nullptr: none

    uint32_t nPlanes{0};                    //!< number of planes
    const uint32_t* planeNetwork{nullptr};  //!< network of a plane: 0 ub, 1 rdma, 2 vpc
    const uint32_t* planeNClasses{nullptr}; //!< destination classes of a plane
    const int32_t* endpointClass{nullptr};  //!< [plane][node], -1: not attached
    const int32_t* endpointSlot{nullptr};   //!< [plane][node] index within the class
    const int64_t* endpointOut{nullptr};    //!< [plane][node] -1 none; <= -2 group; >= 0 row

    const int64_t* switchRow{nullptr};   //!< [node] start of a switch's row in `table`
    uint64_t nTable{0};                  //!< length of `table`
    const int32_t* table{nullptr};       //!< rows of groups by destination class
    uint64_t nLocal{0};                  //!< length of `local`
    const int32_t* local{nullptr};       //!< groups of the last hop
    uint32_t nGroups{0};                 //!< number of groups
    const uint32_t* groupStart{nullptr}; //!< [nGroups + 1] start of a group in `groupLink`
    const uint32_t* groupLink{nullptr};  //!< links of the groups

    const uint32_t* directStart{nullptr}; //!< [nNodes + 1] start of a node's direct links
    const uint32_t* directDst{nullptr};   //!< endpoint at the other end
    const uint32_t* directLink{nullptr};  //!< the link
};

} // namespace ns3

#endif // UB_FABRIC_ARRAYS_H
