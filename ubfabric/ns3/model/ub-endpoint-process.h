// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_ENDPOINT_PROCESS_H
#define UB_ENDPOINT_PROCESS_H

#include "ub-event-queue.h"
#include "ub-fabric-arrays.h"
#include "ub-plane-policy.h"
#include "ub-plane.h"
#include "ub-prefetch.h"
#include "ub-records.h"
#include "ub-transport.h"
#include "ub-wire-format.h"

#include <array>
#include <memory>
#include <set>
#include <tuple>
#include <vector>

namespace ns3
{

class UbTaskGraph;

/// What the endpoints need to know of the fabric's attributes.
struct UbEndpointSettings
{
    uint64_t seed{1};                                             //!< seed of the hashes
    UbWireFormat format;                                          //!< flits of network 0
    std::array<Ptr<UbTransport>, UB_NETWORKS> transports;         //!< by network, not yet attached
    std::array<Ptr<UbCongestionControl>, UB_NETWORKS> congestion; //!< by network, or nullptr
    uint32_t payloadBytes{4096}; //!< most bytes of a message in one packet
};

/// A packet that could not be brought to its destination.
struct UbEndpointError
{
    uint32_t src{UB_NONE}; //!< its source, UB_NONE while there is no error
    uint32_t dst{UB_NONE}; //!< its destination
    uint32_t network{0};   //!< its network
    int64_t timePs{0};     //!< when no way was found first, or when the source gave up
    bool hasWay{false};    //!< there was a way, and no answer
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
 * over the flows of a job, and round robin over the jobs. Flows marked UB_BY_SDMA are issued in
 * the same way by other engines, with a start-up cost and a rate of their own.
 *
 * How packets are made of messages, and what is answered, is the transport's (UbTransport), one
 * for each network. For one that answers nothing (UbPosted) packets are sent and counted here.
 */
class UbEndpointProcess : public UbTransportHost
{
  public:
    /// Largest number of engines of an endpoint, SDMA engines included.
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
        uint32_t held{0};                   //!< packets under way that refer to its flows
        UbFlowAccount* accounts{nullptr};   //!< the caller's accounts of the flows, or nullptr
        std::vector<uint32_t> jobOf;        //!< job of each flow, if a transport needs to know
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

    /// In place of the network of a timer: the timer is of the memory of an endpoint, its name.
    static constexpr uint32_t MEMORY_TIMER = UB_NONE;

    /// Kinds of events; the order at one instant.
    enum EventKind : uint32_t
    {
        TASK_TIMER = 0, //!< a task's duration is over
        OPEN_FLOW = 1,  //!< an open-loop flow starts
        FLOW_SEEN = 2,  //!< a flow's last byte is seen by its receiver
        JOB_ISSUED = 3, //!< the last message of a task is issued
        EMIT = 4,       //!< an engine puts a packet into a port
        REACT = 5,      //!< an endpoint does something about an arrival
        PUMP = 6,       //!< a transport may send a packet of an endpoint
        RETRY = 7,      //!< a packet for which there was no way tries again
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
     * @param [in] process A plane, or a part of one; see Split.
     * @return Packets for it that were sent since the caller last emptied this.
     */
    UbInjections& Outgoing(uint32_t process)
    {
        return m_outgoing[process];
    }

    /**
     * Sort packets by processes that share the work of planes; before the first packet.
     * @param [in] processes Which part of its plane each is, plane by plane.
     */
    void Split(const std::vector<UbPlanePart>& processes);

    /**
     * @return Time of the next event, UB_NEVER if none.
     */
    int64_t NextTime()
    {
        const int64_t next = m_queue.NextTime();
        return m_timers.empty() ? next : std::min(next, std::get<0>(*m_timers.begin()));
    }

    /**
     * Take over what arrived in a plane.
     * @param [in] delivery One packet of a flow.
     */
    void Account(const UbDelivery& delivery)
    {
        UbFlowRecord& flow = Flow(delivery.flow);
        if (IsPostedWrite(flow) && !delivery.isLost)
        {
            Arrive(flow, delivery);
            return;
        }
        m_transports[flow.network]->Account(delivery);
    }

    /**
     * Add to the account of a flow what a plane tells of one of its packets.
     * @param [in] reference The flow.
     * @param [in] waitedPs Waiting for a port: at the source, then switch by switch.
     * @param [in] serialisePs On the wire.
     * @param [in] propagatePs In cables.
     * @param [in] switchPs Forwarding latency of switches.
     */
    void AddAccount(uint32_t reference,
                    const int64_t (&waitedPs)[4],
                    int64_t serialisePs,
                    int64_t propagatePs,
                    int64_t switchPs);

    /**
     * Begin to issue flows.
     * @param [in] endpoint The endpoint.
     * @param [in] task Task to tell when all is issued, or UB_NONE.
     * @param [in] flows References of the flows.
     * @param [in] messagePs Cost of each message beside the engine's own.
     * @param [in] nowPs The time.
     */
    void StartJob(uint32_t endpoint,
                  uint32_t task,
                  const std::vector<uint32_t>& flows,
                  int64_t messagePs,
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

    // inherited from UbTransportHost
    UbFlowRecord& FlowRecord(uint32_t flow) override;
    int64_t Send(UbInjection& injection, uint32_t network, int64_t nowPs) override;
    uint32_t WireBytes(uint32_t network,
                       uint32_t headerBytes,
                       uint32_t payloadBytes) const override;
    int64_t EgressFreePs(uint32_t endpoint) const override;
    uint64_t PortBytesPerS(uint32_t endpoint, uint32_t network) const override;
    int64_t ReceivePs(uint32_t endpoint) const override;
    int64_t AcknowledgePs(uint32_t endpoint) const override;
    int64_t MemoryReadPs(uint32_t endpoint) const override;
    void Schedule(int64_t timePs, uint32_t endpoint, const UbReaction& reaction) override;
    void SchedulePump(int64_t timePs, uint32_t endpoint, uint32_t network) override;
    void SetTimer(int64_t timePs, uint32_t network, uint64_t name, uint32_t index) override;
    void CancelTimer(int64_t timePs, uint32_t network, uint64_t name) override;
    void Deliver(const UbDelivery& delivery) override;
    void CountSent(uint32_t bytes) override;
    void Complete(uint32_t flow, int64_t nowPs) override;
    void Resume(uint32_t endpoint, uint32_t engine, int64_t nowPs) override;
    void Hold(uint32_t flow) override;
    void Release(uint32_t flow) override;
    void Fail(uint32_t flow, int64_t nowPs) override;

    /**
     * @return The first packet that could not be brought to its destination; see HasFailed.
     */
    const UbEndpointError& Error() const
    {
        return m_error;
    }

    /**
     * @return Whether a source gave up a packet, so that the run cannot end well.
     */
    bool HasFailed() const
    {
        return m_hasFailed;
    }

    /**
     * @param [in] reference A flow.
     * @return Its record.
     */
    UbFlowRecord& Flow(uint32_t reference) const
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
            UbPrefetch(&m_chunks[reference >> FLOW_BITS].flows[reference & (MAX_FLOWS - 1)]);
        }
    }

    /**
     * Bring the endpoint that receives a flow into the cache.
     * @param [in] reference The flow, whose record is in the cache, or a device's packet.
     */
    void PrefetchReceiver(uint32_t reference) const
    {
        if ((reference & UB_DEVICE_FLOW) == 0)
        {
            UbPrefetch(&m_endpoints[Receiver(Flow(reference))].receiveLatencyPs);
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
     * Take into account how soon an endpoint acts on arrivals; before the first packet to it.
     * @param [in] endpoint An endpoint.
     */
    void Attend(uint32_t endpoint)
    {
        m_lookaheadPs = std::min(m_lookaheadPs, m_endpoints[endpoint].lookaheadPs);
    }

    /**
     * @return Smallest time between an arrival on a plane and what an endpoint with traffic does
     * about it.
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
    static constexpr uint32_t KIND_SHIFT = 29;     //!< kind above, place below
    static constexpr uint32_t FLOW_BITS = 26;      //!< number within the chunk
    static constexpr uint32_t N_GROUPS = 2;        //!< vector cores, SDMA engines
    static constexpr uint32_t N_STEPS = 3;         //!< steps of LookAhead
    static constexpr uint32_t EVENTS_APART = 3;    //!< events from step to step
    static constexpr uint64_t MANY_EVENTS = 1'000; //!< events that make looking ahead pay

    /// Messages of one flow that are still to be issued.
    struct Item
    {
        uint32_t flow; //!< the flow
        uint32_t left; //!< messages
    };

    /// Flows that are issued together by engines of one group. One cache line.
    struct alignas(64) Job
    {
        uint32_t task{UB_NONE};    //!< who wants to know
        uint32_t partner{UB_NONE}; //!< job of the same task at the other engines, UB_NONE if none
        uint32_t read{0};          //!< next item of this pass
        uint32_t write{0};         //!< items kept for the next pass
        uint64_t unfinished{0};    //!< messages not yet out, pieces not yet complete
        int64_t issuedPs{0};       //!< last message out
        int64_t messagePs{0};      //!< cost of each message beside the engine's own
        std::vector<Item> items;   //!< flows with messages left
    };

    /// An engine of an endpoint. One cache line.
    struct alignas(64) Engine
    {
        uint32_t flow{UB_NONE};     //!< flow of the message at work, UB_NONE when idle
        uint32_t leftBytes{0};      //!< bytes of the message still to go
        uint32_t job{UB_NONE};      //!< job of the message
        uint32_t nextFlow{UB_NONE}; //!< flow of the message being prepared, UB_NONE if none
        uint32_t nextJob{UB_NONE};  //!< its job
        bool isFirst{false};        //!< no piece of the message is out
        int64_t freePs{0};          //!< when the last message was out
        int64_t streamPs{0};        //!< begins to stream the message at work
        int64_t nextReadyPs{0};     //!< the message being prepared is
    };

    /// Engines of one kind of an endpoint.
    struct Group
    {
        int64_t issueCostPs{0};      //!< cost of each message
        bool overlapsIssue{false};   //!< an engine prepares a message while it streams another
        bool heedsMemory{false};     //!< the memory at the other end may be slower than an engine
        uint64_t engineBytesPerS{0}; //!< rate of an engine
        uint32_t fullBytes{0};       //!< a full packet
        int64_t fullPs{0};           //!< time to stream it
        uint64_t idle{0};            //!< engines without a message, a bit each
        uint64_t hungry{0};          //!< engines that could prepare another message, a bit each
        uint32_t nextJob{0};         //!< whose turn it is
        std::vector<uint32_t> jobs;  //!< jobs with messages to issue
    };

    /// An endpoint.
    struct Endpoint
    {
        int64_t receiveLatencyPs{0};        //!< last byte in to seen
        int64_t lookaheadPs{UB_NEVER};      //!< packet in to anything that it does, at least
        int64_t memoryReadLatencyPs{0};     //!< read request in to data out
        int64_t acknowledgeLatencyPs{0};    //!< packet in to response out
        uint64_t egressBytesPerS{0};        //!< rate into all ports
        uint64_t copyBytesPerS{0};          //!< rate to itself
        uint64_t sdmaReadBytesPerS{0};      //!< rate at which another's SDMA engine reads it
        uint64_t sdmaWriteBytesPerS{0};     //!< rate at which another's SDMA engine writes to it
        int64_t egressFreePs{0};            //!< when the egress can take the next packet
        uint64_t packets{0};                //!< packets sent, for the packet hash
        uint32_t firstEngine{0};            //!< its engines
        uint32_t nCores{0};                 //!< engines that are vector cores
        uint32_t nSdma{0};                  //!< SDMA engines, numbered after the vector cores
        std::array<Group, N_GROUPS> groups; //!< vector cores, SDMA engines
        std::array<uint64_t, UB_NETWORKS> portBytesPerS{}; //!< rate of its ports by network
    };

    /// A packet for which there was no way.
    struct Parked
    {
        UbInjection injection; //!< the packet
        uint32_t network;      //!< its network
        uint32_t attempts;     //!< how often it tried
        int64_t sincePs;       //!< when it tried first

        /**
         * @param [in] other Another packet that tries again at the same time.
         * @return Whether this one comes first.
         */
        bool operator<(const Parked& other) const;
    };

    /// A timer: time, network, name, and what the transport finds it by.
    using Timer = std::tuple<int64_t, uint32_t, uint64_t, uint32_t>;

    /// A direct link to another endpoint.
    struct Direct
    {
        uint32_t dst;   //!< the endpoint
        uint32_t link;  //!< the link
        uint32_t plane; //!< its plane
    };

    /**
     * @param [in] network A network.
     * @return Whether nobody answers what is written there.
     */
    bool IsPosted(uint32_t network) const
    {
        return (m_posted >> network) & 1;
    }

    /**
     * @param [in] flow A flow.
     * @return The endpoint to which its bytes go.
     */
    static uint32_t Receiver(const UbFlowRecord& flow)
    {
        return (flow.operation & UB_READ) != 0 ? flow.src : flow.dst;
    }

    /**
     * @param [in] flow A flow.
     * @return Whether its packets are sent and counted here.
     */
    bool IsPostedWrite(const UbFlowRecord& flow) const
    {
        return IsPosted(flow.network) && (flow.operation & UB_READ) == 0;
    }

    /// Bring what engines will touch that are ready soon into the cache, step by step.
    void LookAhead();

    /**
     * Give work to engines that have none.
     * @param [in] endpoint The endpoint.
     * @param [in] group The group of engines.
     * @param [in] nowPs The time.
     */
    void Feed(uint32_t endpoint, uint32_t group, int64_t nowPs);

    /**
     * @param [in] group The engines.
     * @param [in] job A job.
     * @param [in] reference A flow of it.
     * @return What a message costs an engine before it is streamed. A message that does not leave
     * the package costs nothing beside the hardware's own.
     */
    int64_t CostPs(const Group& group, uint32_t job, uint32_t reference) const;

    /**
     * Take the next message of a group's jobs.
     * @param [in,out] group The group.
     * @param [out] flow Its flow.
     * @param [out] job Its job.
     * @return Whether there was one.
     */
    bool NextMessage(Group& group, uint32_t& flow, uint32_t& job);

    /**
     * Give the next message to an engine that has none.
     * @param [in] endpoint The endpoint.
     * @param [in] engine Number of the engine within the endpoint.
     * @param [in] nowPs When the engine can begin.
     * @return Whether there was a message.
     */
    bool TakeMessage(uint32_t endpoint, uint32_t engine, int64_t nowPs);

    /**
     * Let an engine work on a message.
     * @param [in] endpoint The endpoint.
     * @param [in] engine Number of the engine within the endpoint.
     * @param [in] flow The message's flow.
     * @param [in] job The message's job.
     * @param [in] streamPs When the engine begins to stream it.
     */
    void Start(uint32_t endpoint, uint32_t engine, uint32_t flow, uint32_t job, int64_t streamPs);

    /**
     * Let an engine that begins to stream prepare another message.
     * @param [in] endpoint The endpoint.
     * @param [in] engine Number of the engine within the endpoint.
     */
    void Prepare(uint32_t endpoint, uint32_t engine);

    /**
     * @param [in] group A group of engines.
     * @param [in] flow What one of them is at.
     * @param [in] bytes Bytes of it.
     * @return Time that the engine needs to stream them.
     */
    int64_t StreamPs(const Group& group, const UbFlowRecord& flow, uint32_t bytes) const
    {
        if (group.heedsMemory)
        {
            const Endpoint& other = m_endpoints[flow.dst];
            const uint64_t rate = (flow.operation & UB_READ) != 0 ? other.sdmaReadBytesPerS
                                                                  : other.sdmaWriteBytesPerS;
            if (rate != 0 && (group.engineBytesPerS == 0 || rate < group.engineBytesPerS))
            {
                return UbSerialisePs(bytes, rate);
            }
        }
        return bytes == group.fullBytes ? group.fullPs
                                        : UbSerialisePs(bytes, group.engineBytesPerS);
    }

    /**
     * A message of a job is out, or a piece of it complete.
     * @param [in] job The job.
     * @param [in] endpoint Its endpoint.
     * @param [in] nowPs When.
     */
    void JobStep(uint32_t job, uint32_t endpoint, int64_t nowPs);

    /**
     * Count what arrived for a flow.
     * @param [in,out] flow The flow.
     * @param [in] delivery The packet.
     */
    void Arrive(UbFlowRecord& flow, const UbDelivery& delivery);

    /// Do what is left to do about arrivals at one instant. @param [in] first The first event.
    void RunReactions(const UbEventQueue::Event& first);

    /// Let packets without a way try again at one instant. @param [in] first The first event.
    void RunRetries(const UbEventQueue::Event& first);

    /**
     * @param [in] src An endpoint.
     * @param [in] dst Another.
     * @param [in] network A network.
     * @return Planes that have a way through switches, a bit each.
     */
    uint64_t PlanesTo(uint32_t src, uint32_t dst, uint32_t network) const
    {
        uint64_t planes = network < m_networkPlanes.size()
                              ? m_networkPlanes[network] & m_planesOf[src] & m_planesOf[dst]
                              : 0;
        for (uint64_t left = m_checksRoutes ? planes : 0; left != 0; left &= left - 1)
        {
            const auto plane = static_cast<uint32_t>(__builtin_ctzll(left));
            planes &= m_planes[plane]->HasRoute(src, dst) ? ~uint64_t{0} : ~(uint64_t{1} << plane);
        }
        return planes;
    }

    /**
     * @param [in] plane A plane.
     * @param [in] endpoint An endpoint that is attached to it.
     * @return The process that takes the endpoint's packets.
     */
    uint32_t ProcessOf(uint32_t plane, uint32_t endpoint) const
    {
        if (m_processes.empty()) // as a rule
        {
            return plane;
        }
        const auto& [first, ofNode] = m_processes[plane];
        return ofNode ? first + (*ofNode)[endpoint] : first;
    }

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
     * @return Whether there was a way.
     */
    bool SendPacket(UbInjection& injection, uint32_t network, int64_t nowPs);

    /**
     * Keep a packet for which there is no way.
     * @param [in] parked The packet.
     * @param [in] nowPs The time.
     */
    void Park(const Parked& parked, int64_t nowPs);

    /**
     * Take one more event of the same time, kind and place.
     * @param [in] first The event whose like is wanted.
     * @param [out] payload Its payload.
     * @return Whether there was one.
     */
    bool PopSame(const UbEventQueue::Event& first, uint32_t& payload);

    /**
     * @param [in] n A number up to MAX_ENGINES.
     * @return That many bits.
     */
    static uint64_t Bits(uint32_t n);

    /**
     * @param [in] network A network.
     * @param [in] bytes Headers and payload of a packet.
     * @return Bytes on the wire.
     */
    uint32_t Framed(uint32_t network, uint32_t bytes) const;

    /**
     * @param [in] flow A flow.
     * @return Packets of each of its messages.
     */
    uint32_t PacketsOf(const UbFlowRecord& flow) const;

    /**
     * @param [in] flow A flow.
     * @return Most bytes that an engine hands over at a time.
     */
    uint32_t PieceBytes(const UbFlowRecord& flow) const
    {
        if (flow.src == flow.dst)
        {
            return m_packetBytes[flow.network];
        }
        return (flow.operation & UB_READ) != 0 ? m_readBytes[flow.network]
                                               : m_pieceBytes[flow.network];
    }

    /**
     * @param [in] flow A flow.
     * @return Whether an engine only describes its pieces.
     */
    bool IsDescribed(const UbFlowRecord& flow) const
    {
        return ((m_described >> flow.network) & 1) != 0 && flow.src != flow.dst;
    }

    /**
     * Add to the account of a flow the time until a packet of it was ready for a port.
     * @param [in] reference The flow.
     * @param [in] readyPs When.
     */
    void AddIssue(uint32_t reference, int64_t readyPs);

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
    std::vector<UbInjections> m_outgoing;            //!< packets sent, by process
    /// By plane, if any is split: its first process, and the part of each node.
    std::vector<std::pair<uint32_t, std::shared_ptr<const std::vector<uint32_t>>>> m_processes;
    UbHugeVector<Endpoint> m_endpoints;     //!< by node number
    std::vector<uint64_t> m_planesOf;       //!< by node: planes that reach it, a bit each
    UbHugeVector<Engine> m_engines;         //!< all engines
    UbHugeVector<Job> m_jobs;               //!< pool of jobs
    std::vector<uint32_t> m_freeJobs;       //!< unused jobs
    std::vector<uint64_t> m_networkPlanes;  //!< planes of a network, a bit each
    std::vector<uint32_t> m_planeNetwork;   //!< network of a plane
    std::vector<uint32_t> m_directStart;    //!< start of a node's direct links
    std::vector<Direct> m_direct;           //!< direct links
    std::array<Chunk, MAX_CHUNKS> m_chunks; //!< chunks by slot
    std::array<uint64_t, N_STEPS> m_seen{}; //!< by step of LookAhead: events looked at
    bool m_checksRoutes{false};             //!< routes change in the course of the run
    std::array<Ptr<UbTransport>, UB_NETWORKS> m_transports; //!< by network
    std::array<uint32_t, UB_NETWORKS> m_packetBytes{};      //!< most payload of a packet
    std::array<uint32_t, UB_NETWORKS> m_pieceBytes{};       //!< most bytes handed over at a time
    std::array<uint32_t, UB_NETWORKS> m_readBytes{};        //!< most bytes asked for at a time
    std::array<uint32_t, UB_NETWORKS> m_headerBytes{};      //!< headers of a packet
    std::array<uint32_t, UB_NETWORKS> m_fullWireBytes{};    //!< a full packet on the wire
    uint32_t m_posted{0};                  //!< networks that are posted, a bit each
    uint32_t m_described{0};               //!< networks of style DESCRIBE, likewise
    std::vector<UbReaction> m_reactions;   //!< pool of reactions
    std::vector<uint32_t> m_freeReactions; //!< unused reactions
    std::vector<UbReaction> m_reacting;    //!< reactions of one instant
    std::vector<Parked> m_parked;          //!< pool of packets without a way
    std::vector<uint32_t> m_freeParked;    //!< unused ones
    std::set<Timer> m_timers;              //!< timers by time
    UbEndpointError m_error;               //!< first packet in trouble
    bool m_hasFailed{false};               //!< a source gave up
    int64_t m_lookaheadPs{UB_NEVER};       //!< smallest latency of an endpoint with traffic
    int64_t m_lastPs{0};                   //!< time of the last event
    uint64_t m_packetsSent{0};             //!< packets sent
    uint64_t m_bytesSent{0};               //!< payload bytes sent
    uint64_t m_bytesDelivered{0};          //!< payload bytes arrived
    uint64_t m_eventCount{0};              //!< events processed
};

} // namespace ns3

#endif // UB_ENDPOINT_PROCESS_H
