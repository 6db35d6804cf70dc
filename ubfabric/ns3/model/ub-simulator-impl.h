// SPDX-FileCopyrightText: 2026 The ubfabric authors
// SPDX-License-Identifier: GPL-2.0-only

#ifndef UB_SIMULATOR_IMPL_H
#define UB_SIMULATOR_IMPL_H

#include "ns3/event-impl.h"
#include "ns3/scheduler.h"
#include "ns3/simulator-impl.h"

#include <atomic>
#include <list>
#include <mutex>
#include <thread>
#include <vector>

namespace ns3
{

/**
 * @ingroup ub-fabric
 * @brief A part of a simulation that keeps its own events and runs them in windows.
 */
class UbWindowedProcess
{
  public:
    virtual ~UbWindowedProcess() = default;
    /**
     * @return Time of its next event in picoseconds, UB_NEVER if none.
     */
    virtual int64_t NextTime() = 0;
    /**
     * Process a window that begins at NextTime().
     * @param [in] limitPs No event at this time or later may be processed.
     * @return Time of the last event processed.
     */
    virtual int64_t RunWindow(int64_t limitPs) = 0;

    /**
     * @return Whether ordinary events are spread over several operating system processes, which
     * this one keeps in step.
     */
    virtual bool IsSpread() const = 0;

    /**
     * Agree on the next window, if IsSpread(); each waits for the others. Ordinary events before
     * its end may run first: nothing in the window causes any.
     * @param [in] ordinaryPs Time of the next ordinary event here, UB_NEVER if none.
     * @param [in] stops Whether somebody here wants to stop.
     * @return End of the window; UB_NEVER if all is over or anybody wants to stop.
     */
    virtual int64_t Meet(int64_t ordinaryPs, bool stops) = 0;
};

/**
 * @ingroup ub-fabric
 * @brief ns-3's clock for a simulation with a UB fabric in it.
 *
 * Ordinary ns-3 events run as under DefaultSimulatorImpl, one by one and in order. Between two
 * of them the fabric processes its own events in windows that end, at the latest, at the next
 * ordinary event; so an ordinary event always finds the fabric at its own time, and whatever it
 * does there comes after all earlier packets and before all later ones. At one instant ordinary
 * events come first.
 *
 * Use it by binding the global value SimulatorImplementationType to "ns3::UbSimulatorImpl"
 * before the first event is scheduled. A UbFabric works under any other implementation too,
 * more slowly: it then schedules an ordinary event for each instant at which something happens.
 */
class UbSimulatorImpl : public SimulatorImpl
{
  public:
    /**
     * @return The registered TypeId.
     */
    static TypeId GetTypeId();

    UbSimulatorImpl();
    ~UbSimulatorImpl() override;

    /**
     * @param [in] process A process to run between ordinary events.
     */
    void AddProcess(UbWindowedProcess* process);

    /**
     * @param [in] process A process to forget.
     */
    void RemoveProcess(UbWindowedProcess* process);

    // inherited from SimulatorImpl
    void Destroy() override;
    bool IsFinished() const override;
    void Stop() override;
    EventId Stop(const Time& delay) override;
    EventId Schedule(const Time& delay, EventImpl* event) override;
    void ScheduleWithContext(uint32_t context, const Time& delay, EventImpl* event) override;
    EventId ScheduleNow(EventImpl* event) override;
    EventId ScheduleDestroy(EventImpl* event) override;
    void Remove(const EventId& id) override;
    void Cancel(const EventId& id) override;
    bool IsExpired(const EventId& id) const override;
    void Run() override;
    Time Now() const override;
    Time GetDelayLeft(const EventId& id) const override;
    Time GetMaximumSimulationTime() const override;
    void SetScheduler(ObjectFactory schedulerFactory) override;
    uint32_t GetSystemId() const override;
    uint32_t GetContext() const override;
    uint64_t GetEventCount() const override;

  protected:
    void DoDispose() override;

  private:
    /// An event that another thread asked for.
    struct Foreign
    {
        uint32_t context; //!< its context
        int64_t delay;    //!< its delay from when it is taken in
        EventImpl* event; //!< what to do
    };

    /**
     * Put an event into the scheduler.
     * @param [in] timestamp Its time.
     * @param [in] context Its context.
     * @param [in] event What to do.
     * @return Its identifier.
     */
    EventId Insert(uint64_t timestamp, uint32_t context, EventImpl* event);

    /// Process the next ordinary event.
    void ProcessOne();

    /**
     * Run, where ordinary events are spread over several processes.
     * @param [in] process What keeps them in step.
     */
    void RunSpread(UbWindowedProcess& process);

    /**
     * @return Time of the next ordinary event, the greatest there is if none.
     */
    int64_t NextOrdinary() const;

    /// Take in the events that other threads asked for.
    void TakeForeign();

    /**
     * @param [out] process The process whose next event is earliest.
     * @param [out] othersPs The time of the earliest event of the others, UB_NEVER if none.
     * @return The time of that event, UB_NEVER if there is none.
     */
    int64_t NextWindow(UbWindowedProcess*& process, int64_t& othersPs) const;

    Ptr<Scheduler> m_events;                      //!< ordinary events
    std::vector<UbWindowedProcess*> m_processes;  //!< fabrics
    std::list<EventId> m_destroyEvents;           //!< to be run at the end
    uint64_t m_now{0};                            //!< current time step
    uint64_t m_eventCount{0};                     //!< ordinary events processed
    uint32_t m_uid{EventId::UID::VALID};          //!< next identifier
    uint32_t m_currentUid{EventId::UID::INVALID}; //!< identifier of the event at work
    uint32_t m_context;                           //!< context of the event at work
    bool m_stop{false};                           //!< somebody called Stop
    std::atomic<std::thread::id> m_thread;        //!< the thread that runs; others compare
    std::mutex m_foreignMutex;                    //!< guards m_foreign
    std::vector<Foreign> m_foreign;               //!< asked for by other threads
    std::atomic<bool> m_hasForeign{false};        //!< whether m_foreign holds something
};

} // namespace ns3

#endif // UB_SIMULATOR_IMPL_H
