// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_ENDPOINT_PROCESS_H
#define UB_ENDPOINT_PROCESS_H

#include "ub-event-queue.h"
#include "ub-fabric-arrays.h"
#include "ub-plane-policy.h"
#include "ub-plane.h"
#include "ub-records.h"

#include <array>
#include <memory>
#include <vector>

namespace ns3
{

class UbTaskGraph;

/// What the endpoints need to know of the fabric's attributes.
struct UbEndpointSettings
{
    uint32_t payloadBytes; //!< most bytes of a message in one packet
    uint32_t headerBytes;  //!< bytes added to each packet on the wire
    uint64_t seed;         //!< seed of the hashes
};

/**
 * @ingroup ub-fabric
 * @brief All endpoints: engines that issue messages, and the accounting of what arrives.
 *
 * A logical process like the planes, with its own events. Endpoints may act on planes at once;
 * planes act on endpoints only after the endpoint's receive latency, which is the lookahead that
 * lets planes run on their own for a while.
 *
 * An endpoint issues messages as vector cores write remote memory: each engine takes the next
 * message, spends the issue cost on it, and streams it out packet by packet at the engine's
 * rate; all engines of an endpoint share its egress rate. The next message is taken round robin
 * over the flows of a job, and round robin over the jobs.
 */
class UbEndpointProcess
{
  public:
    /// Largest number of engines of an endpoint.
    static constexpr uint32_t MAX_ENGINES = 64;
    /// Largest number of planes of a fabric.
    static constexpr uint32_t MAX_PLANES = 64;
    /// Largest number of chunks at work at one time.
    static constexpr uint32_t MAX_CHUNKS = 32;
    /// Most flows of one chunk.
    static constexpr uint32_t MAX_FLOWS = 1U << 26;

    /// Tasks and flows that were loaded together, usually a layer.
    struct Chunk
    {
        UbFlowRecord* flows{nullptr};       //!< the caller's flows
        UbTaskRecord* tasks{nullptr};       //!< the caller's tasks
        const uint32_t* sendOrder{nullptr}; //!< the caller's flows by sending task
        const uint32_t* openOrder{nullptr}; //!< the caller's open-loop flows by start
        uint32_t nFlows{0};                 //!< number of flows
        uint32_t nTasks{0};                 //!< number of tasks
        uint32_t nOpen{0};                  //!< number of open-loop flows
        uint32_t openNext{0};               //!< next open-loop flow to start
        uint32_t flowsLeft{0};              //!< flows not yet seen by their receiver
        uint32_t tasksLeft{0};              //!< tasks not yet finished
        uint64_t firstTask{0};              //!< number of its first task in the trace
        uint64_t id{0};                     //!< number of the chunk
        bool isLive{false};                 //!< at work
    };

    /**
     * @param [in] arrays The fabric.
     * @param [in] settings Attributes.
     * @param [in] planes The planes.
     * @param [in] policy Who picks the plane of a packet.
     */
    UbEndpointProcess(const UbFabricArrays& arrays,
                      const UbEndpointSettings& settings,
                      std::vector<std::unique_ptr<UbPlane>>& planes,
                      Ptr<UbPlanePolicy> policy);

    /**
     * @param [in] tasks Who is told of issued jobs and arrived flows.
     */
    void SetTaskGraph(UbTaskGraph* tasks)
    {
        m_tasks = tasks;
    }

    /// Kinds of events; the order at one instant.
    enum EventKind : uint32_t
    {
        TASK_TIMER = 0, //!< a task's duration is over
        OPEN_FLOW = 1,  //!< an open-loop flow starts
        FLOW_SEEN = 2,  //!< a flow's last byte is seen by its receiver
        JOB_ISSUED = 3, //!< the last message of a task is issued
        EMIT = 4,       //!< an engine puts a packet into a port
    };

    /**
     * Add an event.
     * @param [in] timePs The time.
     * @param [in] kind What kind.
     * @param [in] place Orders events of one kind at one instant.
     * @param [in] payload What.
     */
    void Push(int64_t timePs, EventKind kind, uint32_t place, uint32_t payload)
    {
        m_queue.Push(timePs, (static_cast<uint32_t>(kind) << KIND_SHIFT) | place, payload);
    }

    /**
     * Process all events before a time, or until tasks of a chunk not yet loaded are needed.
     * @param [in] limitPs The time.
     * @return The time up to which (exclusive) everything was processed.
     */
    int64_t RunBefore(int64_t limitPs);

    /**
     * @return Time of the next event, UB_NEVER if none.
     */
    int64_t NextTime()
    {
        return m_queue.NextTime();
    }

    /**
     * Take over what arrived in a plane.
     * @param [in] delivery One packet of a flow.
     */
    void Account(const UbDelivery& delivery);

    /**
     * Begin to issue flows.
     * @param [in] endpoint The endpoint.
     * @param [in] task Task to tell when all is issued, or UB_NONE.
     * @param [in] flows References of the flows; the vector is swapped away.
     * @param [in] nowPs The time.
     */
    void StartJob(uint32_t endpoint,
                  uint32_t task,
                  const std::vector<uint32_t>& flows,
                  int64_t nowPs);

    /**
     * Send one packet that belongs to no flow, at once.
     * @param [in] src Source endpoint.
     * @param [in] dst Destination endpoint.
     * @param [in] handle What the delivery shall carry.
     * @param [in] bytes Size without the fabric's header.
     * @param [in] network The network.
     * @param [in] lane The virtual lane.
     * @param [in] nowPs The time.
     */
    void SendDevicePacket(uint32_t src,
                          uint32_t dst,
                          uint32_t handle,
                          uint32_t bytes,
                          uint32_t network,
                          uint8_t lane,
                          int64_t nowPs);

    /**
     * @param [in] reference A flow.
     * @return Its record.
     */
    UbFlowRecord& Flow(uint32_t reference)
    {
        return m_chunks[reference >> FLOW_BITS].flows[reference & (MAX_FLOWS - 1)];
    }

    /**
     * Bring a flow's record into the cache.
     * @param [in] reference The flow, or a device's packet.
     */
    void PrefetchFlow(uint32_t reference) const
    {
        if ((reference & UB_DEVICE_FLOW) == 0)
        {
            __builtin_prefetch(&m_chunks[reference >> FLOW_BITS].flows[reference & (MAX_FLOWS - 1)],
                               1);
        }
    }

    /**
     * @param [in] slot Slot of a chunk.
     * @param [in] index Number in the chunk.
     * @return The reference of a flow or task.
     */
    static uint32_t Reference(uint32_t slot, uint32_t index)
    {
        return (slot << FLOW_BITS) | index;
    }

    /**
     * @param [in] reference A flow or a task.
     * @return Its chunk.
     */
    Chunk& ChunkOf(uint32_t reference)
    {
        return m_chunks[reference >> FLOW_BITS];
    }

    /**
     * @param [in] reference A flow or a task.
     * @return Its number in the chunk.
     */
    static uint32_t IndexOf(uint32_t reference)
    {
        return reference & (MAX_FLOWS - 1);
    }

    /**
     * @return All slots for chunks.
     */
    std::array<Chunk, MAX_CHUNKS>& Chunks()
    {
        return m_chunks;
    }

    /**
     * @param [in] src An endpoint.
     * @param [in] dst Another.
     * @param [in] network A network.
     * @return Whether a packet can get from one to the other.
     */
    bool Reaches(uint32_t src, uint32_t dst, uint32_t network) const;

    /// Routes change in the course of the run: look for one before each packet.
    void CheckRoutes()
    {
        m_checksRoutes = true;
    }

    /**
     * @return Smallest time between an arrival on a plane and what an endpoint does about it.
     */
    int64_t LookaheadPs() const
    {
        return m_lookaheadPs;
    }

    /**
     * @param [in] endpoint An endpoint.
     * @return Last byte at the port to seen by the rank.
     */
    int64_t ReceiveLatencyPs(uint32_t endpoint) const
    {
        return m_endpoints[endpoint].receiveLatencyPs;
    }

    /**
     * @return Time of the last event processed.
     */
    int64_t LastPs() const
    {
        return m_lastPs;
    }

    /**
     * @return Packets put into ports or copied within an endpoint.
     */
    uint64_t PacketsSent() const
    {
        return m_packetsSent;
    }

    /**
     * @return Payload bytes handed to the fabric.
     */
    uint64_t BytesSent() const
    {
        return m_bytesSent;
    }

    /**
     * @return Payload bytes that arrived.
     */
    uint64_t BytesDelivered() const
    {
        return m_bytesDelivered;
    }

    /**
     * @return Events processed.
     */
    uint64_t EventCount() const
    {
        return m_eventCount;
    }

  private:
    static constexpr uint32_t KIND_SHIFT = 29; //!< kind above, place below
    static constexpr uint32_t FLOW_BITS = 26;  //!< number within the chunk

    /// Messages of one flow that are still to be issued.
    struct Item
    {
        uint32_t flow; //!< the flow
        uint32_t left; //!< messages
    };

    /// Flows that are issued together.
    struct Job
    {
        uint32_t task{UB_NONE};  //!< who wants to know
        uint32_t read{0};        //!< next item of this pass
        uint32_t write{0};       //!< items kept for the next pass
        uint64_t unissued{0};    //!< messages not yet taken by an engine
        uint64_t unfinished{0};  //!< messages not yet out
        int64_t issuedPs{0};     //!< last message out
        std::vector<Item> items; //!< flows with messages left
    };

    /// An engine of an endpoint.
    struct Engine
    {
        uint32_t flow{UB_NONE}; //!< flow of the message at work, UB_NONE when idle
        uint32_t leftBytes{0};  //!< bytes of the message still to go
        uint32_t job{UB_NONE};  //!< job of the message
    };

    /// An endpoint.
    struct Endpoint
    {
        int64_t issueCostPs{0};      //!< cost of each message
        int64_t receiveLatencyPs{0}; //!< last byte in to seen
        uint64_t engineBytesPerS{0}; //!< rate of an engine
        uint64_t egressBytesPerS{0}; //!< rate into all ports
        uint64_t copyBytesPerS{0};   //!< rate to itself
        int64_t egressFreePs{0};     //!< when the egress can take the next packet
        uint64_t planes{0};          //!< planes that reach it, a bit each
        uint64_t packets{0};         //!< packets sent, for the packet hash
        uint64_t idle{0};            //!< idle engines, a bit each
        uint32_t firstEngine{0};     //!< its engines
        uint32_t nextJob{0};         //!< whose turn it is
        std::vector<uint32_t> jobs;  //!< jobs with messages to issue
    };

    /// A direct link to another endpoint.
    struct Direct
    {
        uint32_t dst;   //!< the endpoint
        uint32_t link;  //!< the link
        uint32_t plane; //!< its plane
    };

    /**
     * Give work to idle engines.
     * @param [in] endpoint The endpoint.
     * @param [in] nowPs The time.
     */
    void Feed(uint32_t endpoint, int64_t nowPs);

    /**
     * Give the next message to an engine.
     * @param [in] endpoint The endpoint.
     * @param [in] engine Number of the engine within the endpoint.
     * @param [in] nowPs When the engine can begin.
     * @return Whether there was a message.
     */
    bool TakeMessage(uint32_t endpoint, uint32_t engine, int64_t nowPs);

    /**
     * An engine has a packet ready.
     * @param [in] endpoint The endpoint.
     * @param [in] engine Number of the engine within the endpoint.
     * @param [in] nowPs The time.
     */
    void Emit(uint32_t endpoint, uint32_t engine, int64_t nowPs);

    /**
     * Put a packet into a port of its source.
     * @param [in,out] injection The packet; link, hashes and time are filled in.
     * @param [in] network The network.
     * @param [in] nowPs The time.
     */
    void SendPacket(UbInjection& injection, uint32_t network, int64_t nowPs);

    /**
     * @param [in] src An endpoint.
     * @param [in] dst Another.
     * @param [in] network A network.
     * @return The direct link between them in that network, or nullptr.
     */
    const Direct* FindDirect(uint32_t src, uint32_t dst, uint32_t network) const;

    UbEndpointSettings m_settings;                   //!< attributes
    std::vector<std::unique_ptr<UbPlane>>& m_planes; //!< the planes
    Ptr<UbPlanePolicy> m_policy;                     //!< picks the plane of a packet
    UbTaskGraph* m_tasks{nullptr};                   //!< the tasks
    UbEventQueue m_queue;                            //!< events
    std::vector<Endpoint> m_endpoints;               //!< by node number
    std::vector<Engine> m_engines;                   //!< all engines
    std::vector<Job> m_jobs;                         //!< pool of jobs
    std::vector<uint32_t> m_freeJobs;                //!< unused jobs
    std::vector<uint64_t> m_networkPlanes;           //!< planes of a network, a bit each
    std::vector<uint32_t> m_planeNetwork;            //!< network of a plane
    std::vector<uint32_t> m_directStart;             //!< start of a node's direct links
    std::vector<Direct> m_direct;                    //!< direct links
    std::array<Chunk, MAX_CHUNKS> m_chunks;          //!< chunks by slot
    bool m_checksRoutes{false};                      //!< routes change in the course of the run
    int64_t m_lookaheadPs{UB_NEVER};                 //!< smallest receive latency
    int64_t m_lastPs{0};                             //!< time of the last event
    uint64_t m_packetsSent{0};                       //!< packets sent
    uint64_t m_bytesSent{0};                         //!< payload bytes sent
    uint64_t m_bytesDelivered{0};                    //!< payload bytes arrived
    uint64_t m_eventCount{0};                        //!< events processed
};

} // namespace ns3

#endif // UB_ENDPOINT_PROCESS_H
